"""What stages run in: the list of them, a run with its facts and progress, their command lines. It knows no judge."""
