"""Scripts for the device's interpreter, which has torch and aiter. The tool starts them and never imports them."""
