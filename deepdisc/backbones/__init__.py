"""Networks that turn an image into feature maps of several strides."""
