"""Train one cell of the table: one norm, one batch size, one world size, one seed.

python train.py norm=syncbn batch_size=4 world_size=2
torchrun --standalone --nproc-per-node=2 train.py norm=syncbn batch_size=4
"""

from launch.process import begin_command

if __name__ == "__main__":
    begin_command()
    from launch.train import main

    main()
