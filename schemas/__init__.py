"""What moves: event contracts, the declaration, the deployment, rows, rejects. Values only, no input or output."""
