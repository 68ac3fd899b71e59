"""The application: who acts, in which order, through which ports. A port stands beside its caller."""
