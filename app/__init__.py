"""A page to search an index with: speak and see pictures, show a picture and hear its descriptions."""
