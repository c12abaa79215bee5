"""What an inspection run leaves in its out folder: results for programs, pictures and a page for people."""

from sam_inspect.report.names import output_names
from sam_inspect.report.page import write_page
from sam_inspect.report.pictures import PictureWriter
from sam_inspect.report.writers import ResultsLog, fingerprint, from_json, to_json, write_coco, write_summary

__all__ = [
    "PictureWriter",
    "ResultsLog",
    "fingerprint",
    "from_json",
    "output_names",
    "to_json",
    "write_coco",
    "write_page",
    "write_summary",
]
