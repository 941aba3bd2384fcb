"""The shipped demo model: its corpus, training, measurement and weights. See MODEL_CARD.md."""
