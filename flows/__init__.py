"""How it moves: pure steps, edges to the outside world, and one short file per flow that joins them."""
