"""A training script as NVFlare's users write them: it knows nothing of any audit."""

import nvflare.client as flare
import torch
from hospital_data import training_images
from net import Net
from torch.utils.data import DataLoader


def main() -> None:
    flare.init()
    site = flare.system_info()["site_name"]
    loader = DataLoader(training_images(site), batch_size=8, shuffle=True)
    model, loss_of = Net(), torch.nn.CrossEntropyLoss()
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        model.load_state_dict(received.params)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
        for images, labels in loader:
            optimizer.zero_grad()
            loss_of(model(images), labels).backward()
            optimizer.step()
        flare.send(
            flare.FLModel(params=model.state_dict(), meta={"NUM_STEPS_CURRENT_ROUND": len(loader)})
        )


if __name__ == "__main__":
    main()
