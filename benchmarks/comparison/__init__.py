"""Three ways to train the same adapter on the same messages, and what tells how they differ.

Each contender runs in a process of its own: `python -m comparison.run_one JOB.json RESULT.json`.
"""
