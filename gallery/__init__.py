"""A page of results: what was asked, what was found before and after re-ranking, and what is confused with what."""
