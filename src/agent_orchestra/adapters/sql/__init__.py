"""SQLite and Postgres: SQLAlchemy Core throughout, and the few hot statements on the driver itself."""
