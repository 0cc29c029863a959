"""What tpu_command.py is made of: standard library only, for a laptop without the package."""
