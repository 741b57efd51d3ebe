"""Models as people give them, of transformers or plain modules: what is asked of each."""
