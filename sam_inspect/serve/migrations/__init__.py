"""The store, revision by revision (Alembic)."""
