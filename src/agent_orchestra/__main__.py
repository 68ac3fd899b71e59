"""``python -m agent_orchestra`` is ``orchestra``."""

from agent_orchestra.cli import main

main()
