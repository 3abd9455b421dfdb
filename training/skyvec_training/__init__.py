"""How the weights come about: pixels and tokens -> loss -> checkpoints -> a model folder."""
