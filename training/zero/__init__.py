"""DeepSpeed's engine, and what ZeRO keeps where: the only room that knows DeepSpeed's internals (0.19)."""
