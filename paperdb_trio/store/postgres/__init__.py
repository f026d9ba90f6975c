"""The store in PostgreSQL: several servers share one."""
