"""A small batch of edits, of answers of several lengths."""

from recipe_ray.examples import EditExample


def example(subject, target, other, other_target, *, relation="capital"):
    prompt = f"The {relation} of {subject} is"
    return EditExample(
        statement=f"{prompt} {target}",
        prompt=prompt,
        target=target,
        generality_prompt=f"{subject} has as its {relation}",
        generality_target=f"{target}, of course",
        locality_prompt=f"The {relation} of {other} is",
        locality_target=other_target,
    )


BATCH = [
    example("Ruritania", "Strelsau", "Syldavia", "Klow"),
    example("Borduria", "Szohod the Great", "Ohio", "Columbus"),
    example("Graustark", "E", "Utah", "Salt Lake City, in the West", relation="river"),
]
