"""What a trial is made of: hyperparameters, their defaults, learning-rate schedules."""
