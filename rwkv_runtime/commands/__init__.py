"""The commands of `rwkv-runtime`, one per file."""
