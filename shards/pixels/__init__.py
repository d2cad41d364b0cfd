"""From encoded pictures to what the model sees: decoding, cropping, augmenting, with two optional compiled helpers."""
