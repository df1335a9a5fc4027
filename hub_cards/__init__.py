"""What a model needs on the Hub beside its weights: a gallery, an endpoint, a Space."""
