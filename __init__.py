"""Speech-image retrieval: say what you want to see, and the picture comes back."""
