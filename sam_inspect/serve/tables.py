"""The store's tables: inspections with their images and reviews, and what is still to be delivered."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class Utc(TypeDecorator[datetime]):
    """A moment in UTC, also where the database knows no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Of all tables."""


class InspectionRow(Base):
    """One answered inspection."""

    __tablename__ = "inspections"
    __table_args__ = (
        UniqueConstraint("recipe", "idempotency_key", name="one_answer_a_key"),
        Index("by_recipe", "recipe", "id"),
        Index("by_verdict", "verdict", "id"),
        Index("by_part", "part", "id"),
    )

    id: Mapped[str] = mapped_column(String(28), primary_key=True)
    recipe: Mapped[str] = mapped_column(String(200))
    recipe_version: Mapped[str] = mapped_column(String(16))
    verdict: Mapped[str] = mapped_column(String(8))
    score: Mapped[float | None] = mapped_column(Float)
    threshold: Mapped[float | None] = mapped_column(Float)
    part: Mapped[str | None] = mapped_column(String(200))
    serial: Mapped[str | None] = mapped_column(String(200))
    camera: Mapped[str | None] = mapped_column(String(200))
    triggered_at: Mapped[datetime | None] = mapped_column(Utc)
    captured_at: Mapped[datetime] = mapped_column(Utc)
    done_at: Mapped[datetime] = mapped_column(Utc, index=True)
    image: Mapped[str] = mapped_column(Text)
    image_bytes: Mapped[int] = mapped_column(Integer)
    request_sha256: Mapped[str] = mapped_column(String(64))
    idempotency_key: Mapped[str | None] = mapped_column(String(200))
    result: Mapped[dict[str, Any]] = mapped_column(JSON)
    review: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class DeliveryRow(Base):
    """A result that an output has not taken yet."""

    __tablename__ = "deliveries"
    __table_args__ = (Index("due", "output", "id"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    inspection_id: Mapped[str] = mapped_column(ForeignKey("inspections.id", ondelete="CASCADE"))
    output: Mapped[str] = mapped_column(String(100))
    record: Mapped[dict[str, Any]] = mapped_column(JSON)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    due_at: Mapped[datetime] = mapped_column(Utc)
    error: Mapped[str | None] = mapped_column(Text)
    refused: Mapped[bool] = mapped_column(default=False, server_default=false())
