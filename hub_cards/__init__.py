"""What a model, a corpus and the metric look like on the Hub, and how they get there."""
