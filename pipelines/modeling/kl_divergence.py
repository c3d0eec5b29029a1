"""The KL divergence between the predictions of two models, per position."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def kl_divergence(teacher: torch.Tensor, student: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T²·KL(softmax(teacher / T) ‖ softmax(student / T)) in nats: [positions].

    teacher, student: logits [positions, vocabulary]. With the factor T² the gradient T·(p_student − p_teacher) keeps
    its magnitude. (Hinton et al. 2015, arXiv:1503.02531.)
    """
    teacher_log_probs = F.log_softmax(teacher.float() / temperature, dim=-1)
    student_log_probs = F.log_softmax(student.float() / temperature, dim=-1)
    kl = F.kl_div(student_log_probs, teacher_log_probs, reduction="none", log_target=True).sum(dim=-1)
    return temperature**2 * kl
