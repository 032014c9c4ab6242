"""What sites and server must agree on: tasks, configuration, messages, data, models, learning, evaluation."""
