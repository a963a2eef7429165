"""The recipe of a trial: hyperparameters, their defaults, learning-rate schedules, class weights."""
