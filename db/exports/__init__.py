"""Results as files: completions, preference pairs, an SFT set, OpenAI batch results."""

from db.exports.export import OPENAI, Export, Exported, check_export, export

__all__ = ["OPENAI", "Export", "Exported", "check_export", "export"]
