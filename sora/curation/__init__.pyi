from sora.curation.engines import Engine as Engine
from sora.curation.engines import ProcessEngine as ProcessEngine
from sora.curation.engines import SerialEngine as SerialEngine
from sora.curation.selecting import Selection as Selection
from sora.curation.spans import CutDetector as CutDetector
from sora.curation.spans import NoCuts as NoCuts
from sora.curation.spans import Span as Span
from sora.curation.spans import Transition as Transition
