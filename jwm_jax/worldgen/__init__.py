"""The generator: latents of the next frames from the frames before them and from conditions."""
