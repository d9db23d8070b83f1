from fakes import changed, fake_audit, trial
from reproduction.audits import KnownAudit


def test_the_joint_deobfuscator_is_none_of_the_adaptive_attackers():
    """The tables compare it with them."""
    joint = trial("joint deobfuscator", "white-box", 0.05)
    found = KnownAudit.of(changed(fake_audit(mse=0.0565), more_trials=[joint]))
    assert found.summary.attacker == "U-Net" and found.summary.mse == 0.0565
    assert KnownAudit.of(fake_audit(best=None, trials=[joint])).summary is None
