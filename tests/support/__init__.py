"""What several tests need: tiny models of real architectures, and pairs to run through them."""
