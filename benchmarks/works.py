"""The works that bench.py measures, by name. Each class is one row of its table.

    title, unit, asked   words for the table; asked is the ratio that was set as the aim
    versions             'plain' and 'ours', or 'ours' alone
    elsewhere            True for work that other processes do, whose memory is not seen
    loads                True for work that loader processes may do ahead of the clock
    units                how many units one repetition does
    prepare()            make the files that the work reads, once for all processes
    plain(), ours()      return a function that does one repetition; not timed themselves
    floor()              (a precision or 'memory', operations or bytes of one unit), or (None, 0)
"""
from benchmarks import works_data, works_net

WORKS = {'extraction': works_data.Extraction, 'samples': works_data.Samples,
         'pairs': works_net.Pairs, 'rank_loss': works_net.RankLoss, 'cam': works_net.Cam,
         'coarse_step': works_net.CoarseStep, 'coarse_step_8': works_net.CoarseStepOf8,
         'mask_step': works_net.MaskStep, 'coarse_inference': works_net.CoarseInference,
         'mask_inference': works_net.MaskInference, 'evaluation': works_net.Evaluation,
         'validation': works_net.Validation, 'epoch': works_net.Epoch, 'start': works_data.Start,
         'mask2lesion_step': works_net.Mask2LesionStep, 'transfer_step': works_net.TransferStep,
         'weak_step': works_net.WeakStep, 'weak_evaluation': works_net.WeakEvaluation}
