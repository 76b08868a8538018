"""The study of the defences: utility against leakage, judged by attackers who know the defence."""
