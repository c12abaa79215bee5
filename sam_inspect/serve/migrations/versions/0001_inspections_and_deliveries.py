"""Inspections and deliveries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "inspections",
        sa.Column("id", sa.String(28), primary_key=True),
        sa.Column("recipe", sa.String(200), nullable=False),
        sa.Column("recipe_version", sa.String(16), nullable=False),
        sa.Column("verdict", sa.String(8), nullable=False),
        sa.Column("score", sa.Float),
        sa.Column("threshold", sa.Float),
        sa.Column("part", sa.String(200)),
        sa.Column("serial", sa.String(200)),
        sa.Column("camera", sa.String(200)),
        sa.Column("triggered_at", MOMENT),
        sa.Column("captured_at", MOMENT, nullable=False),
        sa.Column("done_at", MOMENT, nullable=False, index=True),
        sa.Column("image", sa.Text, nullable=False),
        sa.Column("image_bytes", sa.Integer, nullable=False),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("idempotency_key", sa.String(200)),
        sa.Column("result", sa.JSON, nullable=False),
        sa.Column("review", sa.JSON),
        sa.UniqueConstraint("recipe", "idempotency_key", name="one_answer_a_key"),
    )
    op.create_index("by_recipe", "inspections", ["recipe", "id"])
    op.create_index("by_verdict", "inspections", ["verdict", "id"])
    op.create_index("by_part", "inspections", ["part", "id"])
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("inspection_id", sa.String(28), sa.ForeignKey("inspections.id", ondelete="CASCADE"), nullable=False),
        sa.Column("output", sa.String(100), nullable=False),
        sa.Column("record", sa.JSON, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", MOMENT, nullable=False),
        sa.Column("error", sa.Text),
    )
    op.create_index("due", "deliveries", ["output", "id"])


def downgrade() -> None:
    """Back from it."""
    op.drop_table("deliveries")
    op.drop_table("inspections")
