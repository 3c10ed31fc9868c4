"""
In a Lightning module
=====================

A Lightning trainer calls ``backward`` by itself. To train an existing module with SAM, name
:class:`~lowland.sam.trainers.lightning.SAMTraining` before it among the bases and say which SAM. The module's
own ``training_step``, its logging and its optimizer stay as they are.
"""

# %%
# A module as any other
# ---------------------

import logging
import tempfile
import warnings

import lightning
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lowland import SAM
from lowland.deep import TrainConfig, load_data
from lowland.sam.trainers.lightning import SAMTraining

plt.style.use("lowland.figures.lowland")
torch.set_num_threads(1)  # for networks this small more are slower
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "The '.*_dataloader' does not have many workers")
warnings.filterwarnings(
    "ignore", "`isinstance.treespec, LeafSpec.` is deprecated"
)  # Lightning's own call


class Classifier(lightning.LightningModule):
    """Knows nothing of SAM."""

    def __init__(self):
        super().__init__()
        layers = (
            nn.Linear(64, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )
        self.model = nn.Sequential(nn.Flatten(), *layers)
        self.curves = {"training loss": [], "test error (%)": []}

    def training_step(self, batch):
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.log("training loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch):
        x, y = batch
        self.log("test error (%)", 100 * (self.model(x).argmax(1) != y).float().mean())

    def on_train_epoch_end(self):
        for name, values in self.curves.items():
            values.append(float(self.trainer.callback_metrics[name]))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        ]


# %%
# The same module with SAM
# ------------------------
# These are all the lines that SAM takes. With ``m=1`` each example climbs by itself.


class SharpnessAware(SAMTraining, Classifier):
    """The classifier, trained by 1-SAM."""

    def configure_sam(self):
        return SAM(self, rho=0.05, m=1)


# %%
# Training
# --------
# The training labels are 40 % wrong, where SAM is known to help, and those of the test set are right. Both
# begin with the same weights and see the same batches.

EPOCHS = 50
data = load_data(
    TrainConfig(dataset="digits", model="fc", frac_train=0.5, p_label_noise=0.4)
)
train, test = (
    TensorDataset(part.inputs / 255, part.targets) for part in (data.train, data.test)
)


def trained(kind):
    """A module after its training."""
    lightning.seed_everything(0, verbose=False)
    module = kind()
    with tempfile.TemporaryDirectory() as directory:
        trainer = lightning.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            default_root_dir=directory,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        loader = DataLoader(train, batch_size=128, shuffle=True, drop_last=True)
        trainer.fit(module, loader, DataLoader(test, batch_size=500))
    return module


modules = {"ERM": trained(Classifier), "1-SAM": trained(SharpnessAware)}
figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.1))
for name, module in modules.items():
    for ax, (title, values) in zip(axes, module.curves.items(), strict=True):
        ax.plot(range(1, EPOCHS + 1), values, label=name)
        ax.set(xlabel="epoch", ylabel=title, ylim=(0, None))
    print(
        f"{name:5} ends with a test error of {module.curves['test error (%)'][-1]:.1f} %"
    )
_ = axes[0].legend()

# %%
# ERM's training loss is the lower one because it learns more of the wrong labels, and its test error is the
# higher one. This is one seed. How much of it is owed to m, no run with batches of this size has shown:
# larger m do as well. Checkpoints, gradient accumulation, clipping and mixed precision are Lightning's own,
# and work as without SAM.
