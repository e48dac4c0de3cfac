from sora.curation.spans import CutDetector as CutDetector
from sora.curation.spans import Span as Span
from sora.curation.spans import Transition as Transition
