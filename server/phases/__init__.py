"""The five phases: each function takes a run one transition further."""
