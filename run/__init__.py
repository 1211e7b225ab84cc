"""What surrounds the loop: options, devices, files, the screen. Knows neither text nor model internals."""
