"""What goes on inside a trained model: users' tokens, routing, attention."""
