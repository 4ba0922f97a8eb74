"""Releases: a folder with weights, everything that made them, and a model card. Never a pickle."""

from amortopt.release.fields import Kind as Kind
from amortopt.release.fields import check_name as check_name
from amortopt.release.fields import check_passes as check_passes
from amortopt.release.folder import check_target as check_target
from amortopt.release.folder import list_shipped as list_shipped
from amortopt.release.release import Release as Release
from amortopt.release.release import load_release as load_release
from amortopt.release.release import parameter_count as parameter_count
from amortopt.release.release import save_release as save_release
from amortopt.release.statistics import FamilyStatistics as FamilyStatistics
from amortopt.release.statistics import measure_statistics as measure_statistics
