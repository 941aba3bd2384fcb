"""Where encoded states lie as named byte strings. `base` is the port; other modules are stores."""
