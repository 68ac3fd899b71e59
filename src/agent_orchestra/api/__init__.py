"""The driving side over HTTP: reads the wire, calls the orchestra, writes the wire."""
