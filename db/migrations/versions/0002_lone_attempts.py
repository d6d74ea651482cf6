"""Count how often a row ran alone in its worker and lost it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the count."""
    op.add_column("shards", sa.Column("lone_attempts", sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    """Remove it."""
    op.drop_column("shards", "lone_attempts")
