"""ALBEF pre-training: ITC, ITM and MLM with a momentum teacher on DeepSpeed."""
