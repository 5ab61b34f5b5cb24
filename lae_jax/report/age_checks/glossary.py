"""The words of age checks, and what their numbers do not mean."""

from lae_jax.report.age_checks.cases import Check

LIMITS = (
    "These numbers are not a certificate. Nobody has audited them, and they are not the result of a test of NIST, of an"
    " accreditation scheme or of a national trial.",
    "They hold for people and photographs like those of this data set. Other cameras, other people, or people who try"
    " to look older have other rates.",
    "The true ages are those of the data set. Wrong labels count as errors of the model, and hide some.",
    "An interval covers the choice of the people, not wrong labels, other people or another training run.",
    "A challenge age or a policy that is chosen on these photographs looks better here than it is on others.",
)


def words(check: Check) -> list[str]:
    """Returns the short form of the glossary; docs/age_checks.md has the long one with the sources."""
    old, from_age = f"{check.threshold:g}", f"{check.challenge:g}"
    return [
        f"Threshold: the age that people need to have, here {old}.",
        f"Challenge age: the estimated age from which people pass, here {from_age}; everyone else is referred (NIST IR"
        " 8525: challenge-T).",
        "Refer: ask for another check, such as a document. Deny: turn away without one.",
        f"Below {old}, pass: the false positive rate, the share of the people below {old} who pass.",
        f"{old} and older, referred: the false negative rate, the share of these people who do not pass.",
        "Not processed: the photograph cannot be read, or no face is found. Such a photograph does not pass.",
        "SD: the standard deviation of the errors. Bias: their mean, above 0 where estimates are too old.",
        "Macro MAE: the mean of the MAEs of single years of age, so that frequent ages do not count more.",
        f"Severity: how far below {old} the people are who pass.",
        "Gap: the difference and the ratio of a rate between two groups. The largest of many gaps is large also by"
        " chance.",
        "Completed years: a person of 17.9 years is 17. The age groups elsewhere on this page round instead.",
    ]
