"""Real pictures with words as noisy as the web: the Debian packages openclipart-png and openclipart-svg, in the public domain."""
