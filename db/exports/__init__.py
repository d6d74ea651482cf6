"""Results as files: completions, preference pairs, an SFT set, OpenAI batch results."""

from db.exports.export import Export, Exported, check_export, export

__all__ = ["Export", "Exported", "check_export", "export"]
