"""Images and sounds as inputs: from files and arrays of whatever form to batches, and the tokens made of them."""
